"""vlmphys: fine-tune a video-language model to inspect mechanisms, after teaching it how they should move.

Reading order. What a clip is and where it stands: `records`, `layout`, `clip_lists` (`sources`), `splits`, `held_out`, `near_duplicates`;
how files are written: `files`. What is said about it: `priors`, `prompts`, `dialogue`; `leak_words`, `prior_lint`, and `paeval` for the texts of
other judges; drafts of texts: `prior_outline`, `draft_checks`, `drafting`; `dialogue_export` (`bridges`) for other toolkits. From video to
shards: `frame_rules`, `video`, `regions`, `pixels`, `shards` (`shard_files`), `packing` (`workers`, `unfinished`, `standing`, `takeover`),
`dialogue_packing`, `dialogue_views`, `verifying`; what the video tower makes of them, kept: `features`, `feature_packing`, `tower`. Training, top to
bottom: `config`, `model`, `batches`, `loss`, `tuning`, `world`, `engine`, `train` (the optimizer step is `launch/train.py` -> `train.train` ->
`train.run_steps` -> `train.train_step` -> `engine`); beside it `validation`, `signals`, `help_text`, `timing`, `flops`, `turn_gradients`,
`tracking`, `checkpoint`,
`runs`
(`finished`), and what lies below `engine`: `deepspeed_parts`, `compiling`, `heap`, `out_of_memory`. After it: `inference`, `asking`, `predict`,
`prediction_files`, `predictions` (`rows`, `answer_files`), `calibration` (`calibrate`), `metrics` (`paired`), `scoring`, `comparison`,
`published`, `report` (`report_panels`, `report_clips`, `tables`, `text_tables`, `charts`), `paper`, `export` (`card`). What the
explanations are worth: `text_metrics`, `explanations` (`sentences`), `llm_score`, `paeval_score`, `text_figures`, and the judge that they
ask, `judge` (`judge_options`, `judge_local`, `judge_replies`); below it, and below `drafting`, stand `chat_client`, `chat_journal` and
`chat_asking`. One clip at a time: `detector` (`windows`, `guessing`), `detect` (`watching`, `shown`). Before a run: `plan` (`cases`,
`memory`, `duration`), `doctor`; these two, `export`, `calibrate` and `detect` are commands of `cli`. The simulated bench: `mechanisms`,
`simulation`, `preview`; what it gives away: `cues`, `probing`. The tiny base that ships with the package: `tiny`, `pretrain`.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`Detector` and `Detection`, looked up when they are asked for: importing the package loads no torch."""
    if name in ("Detector", "Detection"):
        from vlmphys import detector
        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
