// Brings the page up to date every few seconds, while somebody looks at it.
//
// Only what has changed is changed: focus, scrolling, open details and selected text stay.
"use strict";

(() => {
    const bar = document.querySelector(".pool-bar");
    const status = document.getElementById("pool-status");
    const button = document.getElementById("pool-pause");
    const reading = document.getElementById("pool-reading");
    const seconds = Number(bar.dataset.refresh);
    const refreshes = `Refreshes every ${seconds} seconds.`;
    let paused = false;

    function say(text, alarm) {
        if (status.textContent !== text) {
            status.textContent = text; // once: a screen reader says it
        }
        status.classList.toggle("alarm", alarm);
    }

    function shownAt() {
        return document.querySelector("#pool-live time").textContent;
    }

    // An XMLHttpRequest parses HTML without a script, as a page with Trusted Types wants it.
    function load(url) {
        return new Promise((resolve, reject) => {
            const request = new XMLHttpRequest();
            request.open("GET", url);
            request.responseType = "document";
            request.timeout = 30000;
            request.onload = () => resolve(request);
            request.onerror = request.ontimeout = reject;
            request.send();
        });
    }

    function isSelected(node) {
        const selection = getSelection();
        return !selection.isCollapsed && selection.containsNode(node, true);
    }

    function matches(old, fresh) {
        return old && old.nodeType === fresh.nodeType && old.nodeName === fresh.nodeName
            && (old.id ?? "") === (fresh.id ?? "");
    }

    function updateAttributes(old, fresh) {
        for (const { name, value } of fresh.attributes) {
            if (old.getAttribute(name) !== value) {
                old.setAttribute(name, value);
            }
        }
        for (const { name } of [...old.attributes]) {
            const isReaders = name === "open" && old.nodeName === "DETAILS";
            if (!fresh.hasAttribute(name) && !isReaders) {
                old.removeAttribute(name);
            }
        }
    }

    function update(old, fresh) {
        if (old.nodeType !== Node.ELEMENT_NODE) {
            if (old.data !== fresh.data && !isSelected(old)) {
                old.data = fresh.data;
            }
            return;
        }
        updateAttributes(old, fresh);
        const wanted = [...fresh.childNodes];
        const ids = new Set(wanted.map(({ id }) => id).filter(Boolean));
        let next = old.firstChild;
        for (const child of wanted) {
            // A row that is gone must not be taken for the row that follows it.
            while (next && next.id && !ids.has(next.id)) {
                const gone = next;
                next = next.nextSibling;
                gone.remove();
            }
            const known = child.id && [...old.children].find(({ id }) => id === child.id);
            if (known && known !== next && matches(known, child)) {
                old.insertBefore(known, next);
                update(known, child);
            } else if (matches(next, child)) {
                update(next, child);
                next = next.nextSibling;
            } else {
                old.insertBefore(document.importNode(child, true), next);
            }
        }
        while (next) {
            const gone = next;
            next = next.nextSibling;
            gone.remove();
        }
    }

    async function refresh() {
        const answer = await load(location.href);
        const fresh = answer.response?.getElementById("pool-live");
        if (paused) {
            return; // since the request was sent
        }
        const ok = answer.status >= 200 && answer.status < 300;
        if (answer.responseURL !== location.href.split("#")[0] || (ok && !fresh)) {
            location.reload(); // to the login
        } else if (!fresh) {
            throw new Error(answer.statusText);
        } else {
            update(document.getElementById("pool-live"), fresh);
            document.title = answer.response.title;
            say(refreshes, false);
        }
    }

    async function tick() {
        if (!paused && !document.hidden) {
            try {
                await refresh();
            } catch {
                if (!paused) {
                    say(`No answer. The page shows the state at ${shownAt()}.`, true);
                }
            }
        }
        setTimeout(tick, seconds * 1000);
    }

    // What a chart shows where the pointer is, or at the point that the arrow keys have reached.
    function read(event) {
        const svg = event.target.closest(".pool-chart")?.querySelector("svg");
        const { left = 0, width = 1 } = svg?.getBoundingClientRect() ?? {};
        const xs = pointsOf(svg);
        const wanted = (event.clientX - left) / width * svg?.viewBox.baseVal.width;
        reading.hidden = !(wanted >= xs[0] - 3); // before that, nothing was seen
        if (!reading.hidden) {
            const distances = xs.map((x) => Math.abs(x - wanted));
            show(svg, distances.indexOf(Math.min(...distances)), event.clientX, event.clientY);
        }
    }

    function pointsOf(svg) {
        const points = svg?.querySelector(".line")?.getAttribute("points") ?? "";
        return points.split(" ").filter(Boolean).map(parseFloat);
    }

    function show(svg, index, x, y) {
        const ago = Math.round((1 - pointsOf(svg)[index] / svg.viewBox.baseVal.width)
            * svg.dataset.seconds);
        const value = svg.querySelector(".line").dataset.values.split(" ")[index];
        reading.textContent = `${value}, ${ago} s ago`;
        const right = document.documentElement.clientWidth - reading.offsetWidth - 8;
        reading.style.left = `${Math.min(x + 12, right)}px`;
        reading.style.top = `${y + 12}px`;
    }

    let at = 0; // the point that the arrow keys have reached, from the right

    function step(event) {
        const svg = event.target.closest(".pool-chart svg");
        const move = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
        const xs = pointsOf(svg);
        if (!move || !xs.length) {
            return;
        }
        event.preventDefault();
        at = Math.min(Math.max(at + move, 0), xs.length - 1);
        const { left, top, width } = svg.getBoundingClientRect();
        const index = xs.length - 1 - at;
        reading.hidden = false;
        show(svg, index, left + xs[index] / svg.viewBox.baseVal.width * width, top);
    }

    const live = document.getElementById("pool-live");
    live.addEventListener("pointermove", read);
    live.addEventListener("pointerdown", read);
    live.addEventListener("pointerleave", () => { reading.hidden = true; });
    live.addEventListener("keydown", step);
    live.addEventListener("focusout", () => { reading.hidden = true; at = 0; });

    button.hidden = false;
    button.addEventListener("click", () => {
        paused = !paused;
        button.textContent = paused ? "Resume" : "Pause";
        say(paused ? `Paused at ${shownAt()}.` : refreshes, false);
    });
    setTimeout(tick, seconds * 1000);
})();
