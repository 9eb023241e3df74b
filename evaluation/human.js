// `asked` is defined before this: {sheet, participant, order: [picture], classes: [text], samples: [[picture]]}. Answers are class numbers, or null
// for "I don't know"; the sheet's digest keeps them apart from those to another sheet.
const find = (id) => document.getElementById(id);
const key = `answers ${asked.sheet} ${asked.participant}`;
let answers = {}, place = 0;

try { answers = JSON.parse(localStorage.getItem(key) ?? "{}"); } catch { /* a browser that keeps nothing for files */ }

function keep() {
  try { localStorage.setItem(key, JSON.stringify(answers)); } catch { /* the export still works */ }
}

function draw() {
  const picture = asked.order[place], answered = Object.keys(answers).length;
  find("place").textContent = `${place + 1} of ${asked.order.length}, ${answered} answered`;
  find("done").value = answered;
  find("picture").src = `pictures/${picture}.jpg`;
  find("back").disabled = place === 0;
  find("next").disabled = place === asked.order.length - 1;
  find("export").disabled = !answered;
  for (const button of document.querySelectorAll("[data-answer]")) {
    button.setAttribute("aria-pressed", String(picture in answers && String(answers[picture]) === button.dataset.answer));
  }
}

function go(to) {
  place = Math.max(0, Math.min(asked.order.length - 1, to));
  draw();
}

function answer(value) {
  answers[asked.order[place]] = value;
  keep();
  go(place + 1);
}

function lines() {
  return asked.order
    .filter((picture) => picture in answers)
    .map((picture) => JSON.stringify({ sheet: asked.sheet, participant: asked.participant, picture, answer: answers[picture] }) + "\n")
    .join("");
}

function choice(text, value) {
  const button = document.createElement("button");
  button.dataset.answer = String(value);
  for (const sample of asked.samples[value] ?? []) {
    const picture = document.createElement("img");
    picture.src = `pictures/${sample}.jpg`;
    picture.alt = "";
    button.append(picture);
  }
  button.append(text);
  button.addEventListener("click", () => answer(value));
  return button;
}

find("choices").append(...asked.classes.map((text, number) => choice(text, number)));
find("unknown").replaceWith(choice("I don’t know", null));
find("back").addEventListener("click", () => go(place - 1));
find("next").addEventListener("click", () => go(place + 1));
find("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const button of find("choices").children) button.hidden = !button.textContent.toLowerCase().includes(wanted);
});
find("export").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines()], { type: "application/jsonl" }));
  link.download = `answers-${asked.participant}.jsonl`;
  link.click();
  URL.revokeObjectURL(link.href);
});
go(Math.max(0, asked.order.findIndex((picture) => !(picture in answers))));
