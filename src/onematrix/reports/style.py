"""How every page looks: light or dark as the reader has it, on a telephone, on paper."""

HEAD = (
    "<!doctype html><html lang=en><meta charset=utf-8>\n"
    "<meta name=viewport content='width=device-width,initial-scale=1'>\n"
    "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; "
    "style-src 'unsafe-inline'; img-src data:\">\n"
)

STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1d2330;--soft:#5b6473;--line:#d9dde4;--good:#1a7f37;--bad:#c62828}
@media(prefers-color-scheme:dark){
:root{--page:#15181e;--ink:#e4e7ec;--soft:#a3abb8;--line:#343a45;--good:#57c26e;--bad:#ff7b72}}
body{font:16px/1.55 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
background:var(--page);color:var(--ink)}
h1{line-height:1.2;font-size:1.9rem}
h2{margin-top:2.5rem;border-bottom:1px solid var(--line);padding-bottom:.2rem;font-size:1.3rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:600;vertical-align:bottom}
th.n,td.n{text-align:right}td.n{white-space:nowrap}
figure{margin:1rem 0;padding:1rem;background:#fff;color:#222;border:1px solid var(--line);border-radius:.5rem}
figure svg,figure img{max-width:100%;height:auto;display:block;margin:auto}
figcaption{font-size:.9rem;color:#555;margin-top:.6rem}
ul.checks{list-style:none;padding:0}.checks small{color:var(--soft);display:block;margin-left:1.4rem}
.ok::first-letter{color:var(--good)}.bad{color:var(--bad);font-weight:600}
.banner{background:#ffd65c;color:#000;padding:.6rem 1rem;border-radius:.4rem}
@media(max-width:40rem){figure{overflow-x:auto}figure svg{max-width:none}}
@media print{body{margin:0;max-width:none;font-size:11px}figure,table{break-inside:avoid}}
"""
