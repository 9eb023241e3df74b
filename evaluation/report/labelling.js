// `asked` is defined before this: {set, measure, key, questions: [{eval_id, uid, left, right}]}; a side is a data: URI, or a word on why there
// is no picture, and the key is a digest of the questions: answers to others are not taken up again.
const find = (id) => document.getElementById(id);
const name = asked.measure === "pdq" ? asked.set : `${asked.set}-by-${asked.measure}`;
const key = `labels ${name} ${asked.key}`;
let state = { rater: "", answers: {} }, place = 0;

try { state = { ...state, ...JSON.parse(localStorage.getItem(key) ?? "{}") }; } catch { /* a browser that keeps nothing for files */ }

function keep() {
  try { localStorage.setItem(key, JSON.stringify(state)); } catch { /* the export still works */ }
}

function side(element, content) {
  element.replaceChildren();
  if (content?.startsWith("data:image/")) {
    const picture = document.createElement("img");
    picture.src = content;
    picture.alt = element.id === "left" ? "evaluation picture" : "corpus picture";
    element.append(picture);
  } else {
    element.append(content ?? "");
  }
}

function draw() {
  const question = asked.questions[place], answered = Object.keys(state.answers).length;
  find("place").textContent = asked.questions.length ? `${place + 1} of ${asked.questions.length}, ${answered} answered` : "nothing to ask";
  find("done").value = answered;
  find("export").disabled = !answered || !state.rater.trim();
  find("back").disabled = place === 0;
  find("next").disabled = place >= asked.questions.length - 1;
  side(find("left"), question?.left);
  side(find("right"), question?.right);
  for (const button of document.querySelectorAll("[data-answer]")) {
    button.disabled = !question;
    button.setAttribute("aria-pressed", String(state.answers[place] === button.dataset.answer));
  }
}

function go(to) {
  place = Math.max(0, Math.min(asked.questions.length - 1, to));
  draw();
}

function answer(value) {
  if (!asked.questions.length) return;
  state.answers[place] = value;
  keep();
  go(place + 1);
}

function lines() {
  return Object.entries(state.answers)
    .sort(([one], [other]) => Number(one) - Number(other))
    .map(([number, value]) => {
      const { eval_id, uid } = asked.questions[Number(number)];
      const { set, measure } = asked;
      return JSON.stringify({ set, measure, eval_id, uid, rater: state.rater.trim(), answer: value }) + "\n";
    })
    .join("");
}

for (const button of document.querySelectorAll("[data-answer]")) button.addEventListener("click", () => answer(button.dataset.answer));
find("back").addEventListener("click", () => go(place - 1));
find("next").addEventListener("click", () => go(place + 1));
find("rater").value = state.rater;
find("rater").addEventListener("input", (event) => { state.rater = event.target.value; keep(); draw(); });
find("export").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines()], { type: "application/jsonl" }));
  link.download = `labels-${name}-${state.rater.trim().replace(/[^\p{L}\p{N}]+/gu, "-")}.jsonl`;
  link.click();
  URL.revokeObjectURL(link.href);
});
document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const chosen = { s: "same", d: "different", u: "unsure" }[event.key];
  if (chosen) answer(chosen);
  if (event.key === "ArrowLeft") go(place - 1);
  if (event.key === "ArrowRight") go(place + 1);
});
draw();
