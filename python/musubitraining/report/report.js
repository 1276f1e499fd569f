"use strict";
// Where somebody points in a chart, or goes with the arrow keys, its values are told.
for (const plot of document.querySelectorAll(".plot")) {
  const rows = JSON.parse(plot.querySelector("script").textContent);
  const cursor = plot.querySelector(".cursor");
  const line = cursor.querySelector("line");
  const dots = cursor.querySelectorAll("circle");
  const readout = plot.closest("section").querySelector(".readout");
  let at = -1;

  function show(row) {
    at = Math.min(rows.length - 1, Math.max(0, row));
    const [place, word, ...values] = rows[at];
    line.setAttribute("x1", `${place}%`);
    line.setAttribute("x2", `${place}%`);
    values.forEach(([height], number) => {
      dots[number].setAttribute("visibility", height === null ? "hidden" : "inherit");
      dots[number].setAttribute("cx", `${place}%`);
      dots[number].setAttribute("cy", height === null ? 0 : height);
    });
    cursor.setAttribute("visibility", "visible");
    readout.textContent = [word, ...values.map(([, told]) => told)].join(" · ");
  }

  function hide() {
    at = -1;
    cursor.setAttribute("visibility", "hidden");
    readout.textContent = "";
  }

  function point(event) {
    const box = plot.getBoundingClientRect();
    const place = (100 * (event.clientX - box.left)) / box.width;
    let low = 0;
    let high = rows.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rows[middle][0] < place) low = middle + 1;
      else high = middle;
    }
    show(low > 0 && place - rows[low - 1][0] < rows[low][0] - place ? low - 1 : low);
  }

  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const far = Math.max(1, Math.round(rows.length / 10));
    const to = {
      ArrowLeft: at - 1, ArrowRight: at + 1, PageDown: at + far, PageUp: at - far, Home: 0, End: rows.length - 1,
    }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
}
// What is folded is on paper too.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const one of folded) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of folded) one.open = false;
});
