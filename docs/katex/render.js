// Renders what pymdownx.arithmatex has marked: \(...\) in a line, \[...\] in a paragraph of its own.
for (const formula of document.querySelectorAll(".arithmatex")) {
  const source = formula.textContent.trim();
  katex.render(source.slice(2, -2), formula, { displayMode: source.startsWith("\\[") });
}
