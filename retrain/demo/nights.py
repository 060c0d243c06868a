"""A night in the demo: run it, and tell in plain lines what it did and what it proved."""

from gateway.config import Config
from gateway.storage import bundles
from gateway.storage.store import Store
from retrain import nightly
from retrain.demo.page import Night
from retrain.errors import NightError
from retrain.night import Trainer
from retrain.promote import wait_for
from retrain.report import NightReport
from router import artifact
from router.router import Router
from router.threshold import NEVER

LIVE_S = 90.0


def run_night(
    config: Config, store: Store, gateway_url: str, *, train: Trainer, max_rows: int
) -> NightReport:
    """Harvest, train, evaluate, calibrate, decide; when it promoted, wait for the gateway to serve
    it. Raises what `nightly.run` raises, and NightError where the gateway does not follow."""
    task = config.task()
    report = nightly.run(config, task, store, train=train, max_rows=max_rows)
    if report.promoted and not wait_for(gateway_url, task, report.bundle, LIVE_S):
        raise NightError(
            f"the gateway does not serve {report.bundle} after {LIVE_S:.0f} s; "
            f"{gateway_url}/readyz says why"
        )
    return report


def champion_router(config: Config, store: Store) -> Router | None:
    """The router that decides now, or None while the teacher answers everything."""
    champion = bundles.champion(store, config.task().name)
    if champion is None:
        return None
    return artifact.load(bundles.read_bundle(champion.path).router_dir)


def certificate_lines(router: Router | None) -> list[str]:
    """What is certified, or how much evidence is missing."""
    if router is None:
        return ["No student was promoted: the teacher goes on answering everything."]
    report, certificate = router.report, router.certificate
    lines = [
        f"{report.n} held-out requests calibrate the router; the student agrees with the teacher "
        f"on {report.agreement:.1%} of them."
    ]
    if certificate is not None:
        return [
            *lines,
            f"Certificate: with score ≥ {certificate.threshold:.4f} the student answers "
            f"{certificate.coverage:.1%} of the requests, and with {certificate.confidence:.0%} "
            f"confidence at most {certificate.upper_bound:.1%} of all requests get an answer "
            f"unlike the teacher's ({certificate.max_disagreement:.0%} are allowed; "
            f"{certificate.errors_served:g} of {certificate.n} seen).",
        ]
    if report.evidence_needed:
        missing = f"at least {report.evidence_needed} more held-out requests are needed"
    else:
        missing = "the requests suffice, the student does not: its surest drafts err too often"
    return [*lines, f"No certificate: {missing}. Until then the teacher answers everything."]


def told(title: str, report: NightReport, router: Router | None) -> Night:
    """The night, for the terminal and for the page."""
    verdict = report.verdict
    return Night(
        title=title,
        verdict=verdict.kind.replace("_", " "),
        reasons=verdict.reasons,
        certificate=tuple(certificate_lines(router)),
        threshold=NEVER if router is None else router.threshold,
    )
