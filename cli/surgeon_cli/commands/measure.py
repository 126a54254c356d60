"""``surgeon measure``: equivariance and projection errors of what is in a path."""

from __future__ import annotations

import surgeon
from surgeon.support.stages import silent
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import GroupOption, JsonOption, Measuring, PathArgument, ReopenOptions, folder_or_only
from surgeon_cli.screen import ERROR_TITLE, print_json, print_table, say


@unbundled
def measure(
    path: PathArgument = None,
    *,
    opening: ReopenOptions,
    measuring: Measuring,
    group: GroupOption = "",
    json_output: JsonOption = False,
) -> None:
    """Measure the equivariance error under random elements of every component of the group.

    For a relaxed folder: of the original, of the relaxed model at its present theta and at theta = 1, and of the clean
    model; with the projection error of both, and the defect of every branch.

    Examples:

        surgeon measure segnn.safetensors --group O3

        surgeon measure segnn-run --elements 32 --json
    """
    from surgeon.proof.words import ERRORS, error_rows

    chosen, options = folder_or_only(path, json_output), opening.options(json_output)
    shown = silent if json_output else say
    found = surgeon.measure(chosen, measuring.settings(), group=group or None, options=options, announce=shown)
    if json_output:
        print_json(found.to_data())
        return
    print_table(ERROR_TITLE, [ERRORS, *error_rows(found.to_data()["equivariance"])])
    for name, error in found.projection_error.items():
        say(f"projection error, {name}: {error:.1e} (relative change of the outputs when the branches are stripped)")
    for key, defect in found.branch_defects.items():
        say(f"branch {key}: sqrt(sum_A |L_A(W)|^2) / |W| = {defect:.2e}")
