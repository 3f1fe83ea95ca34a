"""What the pages have in common that are written for people: one file of HTML each, readable by day and by night."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c2733, #e6edf3); --soft: light-dark(#5b6b7b, #9aa8b5);
  --line: light-dark(#d7dee5, #36424e); --accent: light-dark(#0b6bcb, #58a6ff); --page: light-dark(#fff, #0f151b); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1000px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, .note { color: var(--soft); margin: .2rem 0; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; } .number { font-variant-numeric: tabular-nums; }
text { fill: var(--ink); font: 12px system-ui, sans-serif; } .axis { fill: var(--soft); }
line { stroke: var(--line); } polyline { fill: none; stroke: var(--accent); stroke-width: 2; }
"""
