"use strict";
for (const handle of document.querySelectorAll(".pair input")) {
  const move = () => handle.parentElement.style.setProperty("--at", handle.value + "%");
  handle.addEventListener("input", move);
  move();
}
