"use strict";
(function () {
  var names = ["category", "kind", "role"];
  var selects = names.map(function (name) { return document.getElementById(name); });
  var shown = document.getElementById("shown");
  if (!shown) return;
  var cards = Array.prototype.slice.call(document.querySelectorAll(".card"));
  function fits(card) {
    var category = selects[0].value, kind = selects[1].value, role = selects[2].value;
    return (!category || card.dataset.category === category)
      && (!kind || card.dataset.kinds.split(" ").indexOf(kind) >= 0)
      && (!role || card.dataset.roles.split(" ").indexOf(role) >= 0);
  }
  function apply() {
    var visible = 0;
    cards.forEach(function (card) {
      card.hidden = !fits(card);
      visible += card.hidden ? 0 : 1;
    });
    shown.textContent = visible + " of " + cards.length + " clips shown";
  }
  selects.forEach(function (select) { select.addEventListener("change", apply); });
  apply();
})();
