// Puts a fresh copy of the page in the place of the old one, every few seconds, while it is looked at.
"use strict";

(() => {
    const bar = document.querySelector(".pool-bar");
    const status = document.getElementById("pool-status");
    const button = document.getElementById("pool-pause");
    const seconds = Number(bar.dataset.refresh);
    let paused = false;

    function say(text, alarm) {
        status.textContent = text;
        status.classList.toggle("alarm", alarm);
    }

    function seenAt() {
        return document.querySelector("#pool-live time").textContent;
    }

    // What the reader has scrolled sideways, or focused, stays so: it has an id.
    function replace(old, fresh) {
        const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
        const tables = [...old.querySelectorAll(".pool-scroll")];
        const scrolled = tables.map(({ id, scrollLeft }) => ({ id, scrollLeft }));
        old.replaceWith(fresh);
        for (const { id, scrollLeft } of scrolled) {
            document.getElementById(id)?.scrollTo(scrollLeft, 0);
        }
        document.getElementById(focused)?.focus({ preventScroll: true });
    }

    async function refresh() {
        const response = await fetch(location.href, {
            credentials: "same-origin",
            signal: AbortSignal.timeout(30000),
        });
        const html = new DOMParser().parseFromString(await response.text(), "text/html");
        const fresh = html.getElementById("pool-live");
        if (paused) {
            return; // it has been, while the answer was on its way
        }
        if (response.redirected || (response.ok && !fresh)) {
            location.reload(); // to the login
        } else if (!fresh) {
            throw new Error(response.statusText);
        } else {
            replace(document.getElementById("pool-live"), document.importNode(fresh, true));
            say(`Refreshes every ${seconds} seconds.`, false);
        }
    }

    async function tick() {
        if (!paused && !document.hidden) {
            try {
                await refresh();
            } catch {
                if (!paused) {
                    say(`No answer. This is how it was at ${seenAt()}.`, true);
                }
            }
        }
        setTimeout(tick, seconds * 1000);
    }

    button.hidden = false;
    button.addEventListener("click", () => {
        paused = !paused;
        button.textContent = paused ? "Go on" : "Pause";
        say(paused ? `Paused at ${seenAt()}.` : `Refreshes every ${seconds} seconds.`, false);
    });
    setTimeout(tick, seconds * 1000);
})();
