"""HTML reports and plots from metrics on disk: each report is one file that opens offline."""

from mmcl.reports.html import Hit as Hit
from mmcl.reports.html import Mistake as Mistake
from mmcl.reports.html import Search as Search
from mmcl.reports.html import write_report as write_report
from mmcl.reports.html import write_run_report as write_run_report
