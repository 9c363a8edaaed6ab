"""``report.html``: one page that shows how a run went, from its folder alone, and a page that compares runs.

    record    what lies in a run folder
    findings  what a reader should be warned of
    charts    curves as inline SVG, with the tables behind them
    pictures  pictures as data URIs, small enough for one page
    page      all of it in Jinja2 templates

Training never imports it: matplotlib would cost every rank a second.
"""
