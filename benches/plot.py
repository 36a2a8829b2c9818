"""The bars of native.py as an SVG picture. Nothing but the standard library."""

from xml.sax.saxutils import escape

from contestants import IPIPOU, VETH

WIDTH, MARGIN = 760, 32
LABEL = 150  # where the bars begin
BARS = 400  # the longest one
ROW, BAR, HEAD = 32, 18, 46  # heights
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
INK, FAINT, PAPER, FRAME = "#1f2328", "#636c76", "#ffffff", "#d1d9e0"
COLOURS = {VETH: "#b8c0c9", IPIPOU: "#d9480f"}
OTHERS = "#5b8db8"
# what native.py calls it: the title, the unit, how a number is written
PANELS = {
    "tcp Gbit/s": ("One TCP flow", "Gbit/s", "{:.1f}"),
    "udp kpps": ("UDP, packets of 1200 bytes that arrive", "thousand packets/s", "{:.0f}"),
}
TITLES = {VETH: "bare veth, no tunnel"}


def text(x, y, words, size=13, colour=INK, weight=400, anchor="start"):
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" font-weight="{weight}"'
        f' text-anchor="{anchor}">{escape(words)}</text>'
    )


def order(names, speeds):
    """The cable, ipipou, and the others from fast to slow."""
    first = [name for name in (VETH, IPIPOU) if name in names]
    others = (name for name in names if name not in first)
    return first + sorted(others, key=lambda name: -(speeds[name] or 0))


def panel(top, what, speeds, names):
    title, unit, form = PANELS[what]
    yield text(MARGIN, top + 16, title, 15, weight=600)
    yield text(WIDTH - MARGIN, top + 16, unit, 12, FAINT, anchor="end")
    most = max((speed for speed in speeds.values() if speed), default=1)
    for row, name in enumerate(names):
        y = top + HEAD - 14 + row * ROW
        speed, ours = speeds[name], name == IPIPOU
        weight = 600 if ours else 400
        yield text(MARGIN + LABEL - 14, y + 14, TITLES.get(name, name), 13, INK, weight, "end")
        x = MARGIN + LABEL
        if speed is None:
            yield text(x, y + 14, "not measured", 12, FAINT)
            continue
        width = max(2, round(BARS * speed / most))
        colour = COLOURS.get(name, OTHERS)
        yield f'<rect x="{x}" y="{y}" width="{width}" height="{BAR}" rx="3" fill="{colour}"/>'
        number = form.format(speed)
        yield text(x + width + 8, y + 14, number, 13, INK, 600)
        if name != VETH and speeds.get(VETH):
            share = f"{100 * speed / speeds[VETH]:.0f} % of veth"
            yield text(x + width + 18 + 8 * len(number), y + 14, share, 12, FAINT)


def chart(medians, machine):
    names = order(list(medians["tcp Gbit/s"]), medians["tcp Gbit/s"])
    high = HEAD + ROW * len(names)
    height = 78 + len(PANELS) * high + 34
    words = "; ".join(
        f"{PANELS[what][0]}: " + ", ".join(f"{n} {s:.1f}" for n, s in speeds.items() if s)
        for what, speeds in medians.items()
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" font-family="{FONT}" role="img">',
        f"<title>Userspace tunnels compared</title><desc>{escape(words)}</desc>",
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10" fill="{PAPER}"'
        f' stroke="{FRAME}"/>',
        text(MARGIN, 38, "Userspace tunnels between two hosts on one machine", 18, weight=700),
    ]
    for number, (what, speeds) in enumerate(medians.items()):
        parts += panel(68 + number * high, what, speeds, names)
    about = f"Linux {machine['kernel'].split('-')[0]}, {machine['cpu']}, {machine['cpus']} CPUs;"
    about += " more is better; both ends share the CPUs"
    parts.append(text(MARGIN, height - 20, about, 11, FAINT))
    return "\n".join([*parts, "</svg>", ""])
