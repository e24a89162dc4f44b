"use strict";
(function () {
  var category = document.getElementById("category"), outcome = document.getElementById("outcome");
  var shown = document.getElementById("shown");
  if (!category) return;
  var cards = Array.prototype.slice.call(document.querySelectorAll(".card"));
  function apply() {
    var visible = 0;
    cards.forEach(function (card) {
      var fits = (!category.value || card.dataset.category === category.value)
        && (!outcome.value || card.dataset.outcomes.split(" ").indexOf(outcome.value) >= 0);
      card.hidden = !fits;
      visible += fits ? 1 : 0;
    });
    shown.textContent = visible + " of " + cards.length + " clips shown";
  }
  category.addEventListener("change", apply);
  outcome.addEventListener("change", apply);
  apply();
})();
