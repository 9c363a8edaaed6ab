"""``report.html``: one page about a run, made from its folder alone, and one page that compares runs.

    record      the content of a run folder
    findings    warnings and hints
    charts      charts as inline SVG, each with its table
    pictures    pictures as data URIs, small enough for one page
    page        the page of a run
    comparison  the page of several runs
    rendering   the Jinja2 templates and the file

Training does not import it: matplotlib would cost every rank a second.
"""
