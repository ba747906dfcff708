"""The paper as a program: its cells typed once, ours measured beside them."""

from mambar.paper.claim import Budget as Budget
from mambar.paper.claim import Claim as Claim
from mambar.paper.claim import Provenance as Provenance
from mambar.paper.claim import Result as Result
from mambar.paper.index import names as names
from mambar.paper.index import reproduce as reproduce
from mambar.paper.index import reproduce_together as reproduce_together
from mambar.paper.render import render as render
