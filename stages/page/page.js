"use strict";
// One clock for the whole page: frame k of every video is shown while the slider stands at k.
(() => {
  const root = document.documentElement, all = (what, from = document) => [...from.querySelectorAll(what)];
  const slider = document.getElementById("at"), play = document.getElementById("play");
  const speed = document.getElementById("speed"), said = document.getElementById("frame");
  const masks = document.getElementById("masks"), judge = document.getElementById("judge");
  const count = Number(slider.max) + 1, fps = Number(slider.dataset.fps);
  const watches = "IntersectionObserver" in window;
  // Only what is near the window is drawn: a page may hold hundreds of videos.
  const parts = all(".card, .inks figure").map(card => ({
    card, near: !watches, canvases: all("canvas", card), cursors: all(".now", card),
    dots: all("[data-path]", card).map(dot => ({ dot, path: JSON.parse(dot.dataset.path) })),
  }));
  let frame = 0, timer = 0;

  function paint(canvas) {
    const { sheet, masked } = canvas.dataset;
    const image = document.getElementById(masked && masks.checked ? masked : sheet);
    if (!image.complete || !image.naturalWidth) {
      image.addEventListener("load", () => paint(canvas), { once: true });
      return;
    }
    const { frames, columns, width, height } = image.dataset;
    const k = Math.min(frame, frames - 1), pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(image, (k % columns) * width, Math.floor(k / columns) * height, width, height,
      0, 0, canvas.width, canvas.height);
    canvas.classList.toggle("ended", frame >= frames);
  }

  function draw({ near, canvases, dots, cursors }) {
    if (!near) return;
    canvases.forEach(paint);
    for (const { dot, path } of dots) {
      const place = frame < path.length ? path[frame] : null;
      dot.style.visibility = place ? "inherit" : "hidden";
      if (place) place.forEach((share, axis) => dot.setAttribute(axis ? "cy" : "cx", share));
    }
    for (const line of cursors) {
      const { from, step, count: own } = line.dataset;
      const x = Number(from) + Number(step) * Math.min(frame, own - 1);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
  }

  function show() {
    slider.value = frame;
    said.textContent = `frame ${frame + 1} of ${count}`;
    parts.forEach(draw);
  }

  function go(to) {
    frame = (to + count) % count;
    show();
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }

  function toggle() {
    if (timer) return stop();
    timer = setInterval(() => go(frame + 1), 1000 / (fps * Number(speed.value)));
    play.textContent = "Pause";
  }

  function choose() {
    for (const layer of all(".tracks")) layer.style.visibility = layer.dataset.judge === judge.value ? "visible" : "hidden";
  }

  play.addEventListener("click", toggle);
  slider.addEventListener("input", () => { stop(); go(Number(slider.value)); });
  speed.addEventListener("change", () => { if (timer) { stop(); toggle(); } });
  masks.addEventListener("change", show);
  judge.addEventListener("change", choose);

  document.addEventListener("keydown", event => {
    const on = event.target.closest("input, select, button, summary, a") || document.body;
    const ranged = on === slider, free = on === document.body;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && (free || ranged)) toggle();
    else if (event.key === "ArrowRight" && free) { stop(); go(frame + 1); }
    else if (event.key === "ArrowLeft" && free) { stop(); go(frame - 1); }
    else if (event.key === "m" && on !== judge && on !== speed) { masks.checked = !masks.checked; show(); }
    else if (event.key === "t" && on !== judge && on !== speed) {
      judge.selectedIndex = (judge.selectedIndex + 1) % judge.options.length;
      choose();
    } else return;
    event.preventDefault();
  });

  // Sorting: figures by value, words by letters, what was not measured last whichever way it goes.
  for (const button of all("th button")) button.addEventListener("click", () => {
    const head = button.closest("th"), table = button.closest("table"), column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => row.cells[column].dataset.value;
    const rows = all("tbody tr", table).sort((one, two) => {
      const [a, b] = [value(one), value(two)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = a - b || (isNaN(a - b) ? a.localeCompare(b) : 0);
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  });

  if (watches) {
    const of = new Map(parts.map(part => [part.card, part]));
    const watch = new IntersectionObserver(seen => {
      for (const { target, isIntersecting } of seen) {
        const part = of.get(target);
        part.near = isIntersecting;
        draw(part);
      }
    }, { rootMargin: "50%" });
    for (const { card } of parts) watch.observe(card);
  }
  addEventListener("beforeprint", () => { for (const more of all("details")) more.open = true; });
  root.classList.add("js");
  choose();
  show();
})();
