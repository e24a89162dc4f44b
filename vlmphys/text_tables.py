"""A table as text, written as Markdown, LaTeX, HTML, or for the terminal: what it says is made once, elsewhere. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text

LATEX_SIGNS = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
               "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
               "–": "--", "−": "$-$", "±": r"$\pm$", "Δ": r"$\Delta$"}


@dataclass(frozen=True)
class TextTable:
    """`header` names the columns, `rows` begin with their label; `notes` are sentences below it; `means`: places of rows that are means."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    means: frozenset[int] = field(default_factory=frozenset)

    def markdown(self) -> str:
        """The table in Markdown, with its notes."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        table = "\n".join("| " + " | ".join(markdown_text(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"## {markdown_text(self.title)}\n\n{table}\n\n" + "".join(f"- {markdown_text(note)}\n" for note in self.notes)

    def latex(self) -> str:
        """A plain tabular, which needs no package; the title and the notes stand before it as comments."""
        comments = "".join("% " + one_line(line) + "\n" for line in (self.title, *self.notes))
        lines = [" & ".join(map(latex_text, self.header)) + r" \\", r"\hline"]
        for place, row in enumerate(self.rows):
            if place in self.means and place - 1 not in self.means:
                lines.append(r"\hline")
            lines.append(" & ".join(map(latex_text, row)) + r" \\")
        columns = "l" + "r" * (len(self.header) - 1)
        return comments + f"\\begin{{tabular}}{{{columns}}}\n\\hline\n" + "\n".join(lines) + "\n\\hline\n\\end{tabular}\n"

    def html(self) -> str:
        """A section with heading, table and notes; every text is escaped."""
        head = "".join(f"<th>{escape(title)}</th>" for title in self.header)
        body = "".join(f'<tr{" class=mean" if place in self.means else ""}><th scope="row">{escape(row[0])}</th>'
                       + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>" for place, row in enumerate(self.rows))
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return (f'<h2>{escape(self.title)}</h2><div class="box scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
                f'<ul class="notes soft small">{notes}</ul>')

    def show(self, console: Console) -> None:
        """Print it with its notes."""
        drawn = Table(title=self.title, title_justify="left", header_style="bold", row_styles=("", "dim"))
        for number, title in enumerate(self.header):
            drawn.add_column(Text(title), justify="right" if number else "left")
        for place, row in enumerate(self.rows):
            drawn.add_row(*map(Text, row), style="bold" if place in self.means else None,
                          end_section=place + 1 in self.means and place not in self.means)
        console.print(drawn)
        for note in self.notes:
            console.print(Text(f"- {note}"), style="dim")


def one_line(text: str) -> str:
    """A text without line breaks, which would end a row or a comment."""
    return " ".join(text.splitlines())


def markdown_text(text: str) -> str:
    """A text on one line that opens no HTML element."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", one_line(text))


def latex_text(text: str) -> str:
    """A text on one line with LaTeX's signs escaped."""
    return "".join(LATEX_SIGNS.get(sign, sign) for sign in one_line(text))
