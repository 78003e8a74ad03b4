// What the theme leaves out for those who hear a page, or move in it by keys: a name for the search dialog, and a focus
// for what scrolls sideways.
const mend = () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-typeset__scrollwrap, pre > code").forEach((one) => one.setAttribute("tabindex", "0"));
};
window.addEventListener("load", () => { mend(); setTimeout(mend, 300); });
