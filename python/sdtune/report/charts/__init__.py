"""Charts of the report: ``run`` of one run, ``comparison`` of several, ``svg`` how a chart is drawn."""
