"""Write the report page of a run, or one page that compares several runs.

python make_report.py runs/demo                                     # runs/demo/report.html
python make_report.py --compare runs/a runs/b runs/c                # runs/comparison.html
"""

from pathlib import Path

from sdtune import cli
from sdtune.arguments import Parser


def main() -> None:
    """Write the page; print its path."""
    parser = Parser(__doc__)
    parser.add_argument("run", nargs="*", help="folder of a run")
    parser.add_argument("--compare", nargs="+", metavar="RUN", help="folders of the runs that are compared")
    parser.add_argument(
        "--output",
        type=Path,
        help="the page (default: report.html in the run folder, or comparison.html beside the first run folder)",
    )
    args = parser.parse_args()
    if bool(args.run) == bool(args.compare) or len(args.run) > 1:
        parser.error("give the folder of one run, or --compare with the folders of several")
    if args.compare:
        from sdtune.report.comparison import write_comparison

        print(write_comparison(args.compare, args.output))
    else:
        from sdtune.report.page import write_report

        print(write_report(args.run[0], args.output))


if __name__ == "__main__":
    cli.run(main)
