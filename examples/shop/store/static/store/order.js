// Shows how far the order is, until the mail is sent. The page is complete without it.
const steps = document.querySelector("[data-status]");

async function look() {
  let state;
  try {
    const answer = await fetch(steps.dataset.status);
    if (!answer.ok) throw new Error(answer.status);
    state = await answer.json();
  } catch {
    setTimeout(look, 2000);
    return;
  }
  for (const step of steps.querySelectorAll("[data-step]")) step.classList.toggle("done", state[step.dataset.step]);
  if (state.task) {
    const worker = state.worker ? `, ${state.worker}` : "";
    const attempt = state.attempts > 1 ? `, attempt ${state.attempts}` : "";
    steps.querySelector("[data-text=task]").textContent = state.task.toLowerCase() + worker + attempt;
  }
  document.querySelector("[data-show=invoice]").hidden = !state.invoice;
  if (!state.mailed && state.task !== "FAILED") setTimeout(look, 500);
}

look();
