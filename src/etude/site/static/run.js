// Live progress of a run: one stream of events; at its end the page is read again.
"use strict";
(() => {
  const run = document.getElementById("run");
  if (!run || !window.EventSource) return;
  const said = document.getElementById("run-said");
  const bar = document.getElementById("run-bar");
  const words = (facts) => {
    if (facts.state === "queued") {
      return `Waiting: ${facts.ahead} ${facts.ahead === 1 ? "trial comes" : "trials come"} first.`;
    }
    if (facts.stopping) return "Stopping.";
    if (!facts.total) return "Starting: the data is read.";
    return `${facts.done} of ${facts.total} steps: ${facts.label}`;
  };
  const source = new EventSource(run.dataset.events);
  source.addEventListener("progress", (event) => {
    const facts = JSON.parse(event.data);
    said.textContent = words(facts);
    if (facts.total) {
      bar.max = facts.total;
      bar.value = facts.done;
    } else {
      bar.removeAttribute("value");
    }
  });
  source.addEventListener("end", () => {
    source.close();
    window.location.reload();
  });
  source.addEventListener("error", () => {
    // A browser comes back by itself, except where it was refused: then the page reloads.
    if (source.readyState === EventSource.CLOSED) {
      setTimeout(() => window.location.reload(), 5000);
    }
  });
})();
