"""HTML reports and plots from metrics on disk: each report is one file that opens offline."""

from mmcl.evaluation.shown import Hit as Hit
from mmcl.evaluation.shown import Mistake as Mistake
from mmcl.evaluation.shown import Search as Search
from mmcl.reports.contact_sheet import write_contact_sheet as write_contact_sheet
from mmcl.reports.html import write_report as write_report
from mmcl.reports.html import write_run_report as write_run_report
from mmcl.reports.judged import Judged as Judged
from mmcl.reports.judged import judge_run as judge_run
from mmcl.reports.search_page import images_of_rows as images_of_rows
from mmcl.reports.search_page import write_search_page as write_search_page
