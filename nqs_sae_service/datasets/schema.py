"""The labelled variables of every stage file: the one table that writers obey and readers may rely on.

A variable is declared once with its dimensions, unit and meaning. ``labelled`` builds a dataset from plain arrays and refuses
what is not declared. Complex variables are stored as a pair ``x_re``, ``x_im`` (compound types are unreadable elsewhere).
Conventions: a configuration is int8 in {-1, +1} in the sigma^z basis; energies are totals in units of J.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

VERSION = 1


@dataclass(frozen=True)
class Variable:
    """Declaration of one variable: dimension names, meaning, unit, whether zlib pays, whether it is a timing."""

    dims: tuple[str, ...]
    long_name: str
    units: str = "1"
    compress: bool = False
    volatile: bool = False

    def over(self, n_dims: int) -> tuple[str, ...]:
        """The dimensions of an array of so many: those declared, or a leading ``time`` and those."""
        return ("time", *self.dims) if n_dims == len(self.dims) + 1 else self.dims


def _v(
    dims: str, long_name: str, units: str = "1", compress: bool = False, volatile: bool = False
) -> Variable:
    return Variable(tuple(dims.split()), long_name, units, compress, volatile)


_STEERED = "layer target direction scale estimator"

SCHEMA: dict[str, dict[str, Variable]] = {
    "transfer": {
        "matching_loss": _v(
            "match_step block",
            "share of the square of the teacher's output that the heads of a block miss",
            "1",
            True,
        ),
        "infidelity": _v(
            "infidelity_step",
            "1 - fidelity to the teacher, on samples of the network before the step; the last one at the end",
        ),
        "parameters": _v("parameter", "variational parameters that the training on energy begins with"),
        "final_configuration": _v(
            "chain spin", "the chains at the end: the training goes on with them", "1", True
        ),
    },
    "ground_state": {
        "energy": _v("step", "mean local energy (total)", "J", True),
        "energy_error": _v("step", "standard error of the energy, samples taken as independent", "J", True),
        "energy_variance": _v("step", "variance of the local energy", "J^2", True),
        "acceptance": _v("step", "accepted share of the proposals", "1", True),
        "learning_rate": _v("step", "step length of the update", "1", True),
        "shift": _v("step", "diagonal shift added to the minSR matrix", "1", True),
        "step_norm": _v("step", "length of the update in the metric S, before the bound", "1", True),
        "step_bounded": _v("step", "1 where the bound on the step length held the update back", "1", True),
        "step_seconds": _v("step", "wall time of the step", "s", True, True),
        "parameters": _v("parameter", "final variational parameters"),
        "initial_parameters": _v("parameter", "variational parameters before training"),
        "checkpoint_parameters": _v(
            "checkpoint parameter", "variational parameters after the steps of ground_state.checkpoints"
        ),
        "final_configuration": _v(
            "chain spin", "the chains at the end, thermalised: later samples start here", "1", True
        ),
        "mean_configuration": _v("spin", "mean of sigma^z on the final samples", "1", True),
    },
    "dynamics": {
        "energy": _v("time", "energy (total) of the Hamiltonian after the quench", "J"),
        "energy_error": _v("time", "its standard error, 0 where all configurations are summed", "J"),
        "tdvp_error": _v(
            "time",
            "share of the energy variance that the network did not follow (ptvmc: infidelity of a step), mean over the steps "
            "since the time before",
        ),
        "effective_rank": _v("time", "directions of the metric that were followed, mean over these steps"),
        "step_size": _v("time", "mean length of the steps since the time before", "1/J"),
        "steps": _v("time", "steps taken since time 0"),
        "observable_mean": _v("time observable", "expectation value"),
        "observable_error": _v(
            "time observable", "its standard error, 0 where all configurations are summed"
        ),
        "observable_exact": _v("time observable", "that of the exactly evolved state where known, else NaN"),
        "infidelity": _v("time", "1 - fidelity with the exactly evolved state where known, else NaN"),
        "parameters": _v("time parameter", "variational parameters"),
        "final_configuration": _v(
            "time chain spin", "thermalised chains: later samples of each time start here", "1", True
        ),
    },
    "samples": {
        "configuration": _v("chain draw spin", "Born samples, sigma^z in {-1, +1}", "1", True),
        "log_psi": _v("chain draw", "log of the unnormalised wave function"),
    },
    "observables": {
        "value": _v("chain draw observable", "observable, or its local estimator, on every sample"),
        "mean": _v("observable", "Born expectation value"),
        "error": _v("observable", "standard error of the mean (batch means over chains)"),
        "r_hat": _v("observable", "split R-hat between chains"),
        "exact": _v("observable", "exact ground-state expectation value where known, else NaN"),
        "simple_function_r2": _v(
            "observable",
            "variance share explained by simple functions of the input (attribute simple_functions)",
        ),
        "energy_variance": _v("", "variance of the energy (total), mean of |E_loc - E|^2", "J^2"),
        "energy_variance_error": _v("", "its standard error", "J^2"),
        "renyi2": _v("subsystem", "second Renyi entropy -log tr rho_A^2 of the subsystem, natural logarithm"),
        "renyi2_error": _v("subsystem", "its standard error"),
        "renyi2_exact": _v("subsystem", "that of the exact ground state where known, else NaN"),
    },
    "activations": {
        # one variable per layer is declared on the fly: <layer> (chain draw token width), participation_ratio per layer
        "participation_ratio": _v("layer", "(tr C)^2 / tr C^2 of the activation covariance"),
    },
    "sae": {
        "encoder": _v("layer sae_seed feature width", "encoder rows, acting on raw activations"),
        "decoder": _v("layer sae_seed feature width", "decoder rows, acting on raw activations"),
        "encoder_bias": _v("layer sae_seed feature", "encoder bias"),
        "decoder_bias": _v(
            "layer sae_seed width", "decoder bias, subtracted from the input and added to the output"
        ),
        "threshold": _v(
            "layer sae_seed feature", "what a pre-activation must exceed, of kinds that have thresholds"
        ),
        "loss": _v("layer sae_seed step", "training loss per element of the scaled input", "1", True),
        "l0": _v("layer sae_seed step", "mean number of active features", "1", True),
        "dead_fraction": _v("layer sae_seed step", "share of features that have not fired lately", "1", True),
        "feature_density": _v(
            "layer sae_seed feature", "share of select-split inputs on which the feature is active"
        ),
        "explained_variance": _v("layer sae_seed", "1 - sum |e|^2 / sum |x - mean|^2 on the select split"),
        "energy_recovered": _v("layer sae_seed", "(E_ablated - E_sae) / (E_ablated - E), mean ablation"),
        "infidelity": _v(
            "layer sae_seed", "1 - fidelity of the state with the layer replaced by its reconstruction"
        ),
        "untrained_parameters": _v(
            "initialisation parameter", "parameters of the untrained control networks"
        ),
        "untrained_encoder": _v(
            "layer initialisation feature width", "encoder of the dictionary of an untrained network"
        ),
        "untrained_decoder": _v(
            "layer initialisation feature width", "decoder of the dictionary of an untrained network"
        ),
        "untrained_encoder_bias": _v("layer initialisation feature", "its encoder bias"),
        "untrained_decoder_bias": _v("layer initialisation width", "its decoder bias"),
        "untrained_threshold": _v("layer initialisation feature", "its thresholds"),
        "untrained_explained_variance": _v(
            "layer initialisation", "its explained variance on the select split"
        ),
    },
    "features": {
        "pearson": _v("layer feature observable", "Pearson correlation on test chains"),
        "pearson_low": _v("layer feature observable", "lower end of its bootstrap interval"),
        "pearson_high": _v("layer feature observable", "upper end of its bootstrap interval"),
        "spearman": _v("layer feature observable", "Spearman rank correlation on test chains"),
        "p_value": _v("layer feature observable", "two-sided p-value from permutations of whole chains"),
        "q_value": _v(
            "layer feature observable",
            "Benjamini-Hochberg q-value over features and observables of the layer",
        ),
        "best_feature": _v("layer observable", "feature with the largest |r| on select chains"),
        "best_pearson": _v("layer observable", "its Pearson correlation on test chains"),
        "best_control": _v("layer observable", "control with the largest |r| on test chains"),
        "gain": _v("layer observable", "|r| of the best feature minus |r| of the best control, test chains"),
        "gain_low": _v("layer observable", "lower end of the paired-bootstrap interval of the gain"),
        "gain_high": _v("layer observable", "upper end of the paired-bootstrap interval of the gain"),
        "verdict": _v("layer observable", "verdict in one sentence"),
        "control_pearson": _v(
            "layer control observable", "Pearson correlation of the control on test chains"
        ),
        "control_low": _v("layer control observable", "lower end of its bootstrap interval"),
        "control_high": _v("layer control observable", "upper end of its bootstrap interval"),
        "untrained_pearson": _v(
            "layer initialisation observable", "the untrained control, each initialisation"
        ),
        "partial_pearson": _v(
            "layer feature observable",
            "partial correlation beyond the simple functions of observables.nc, test chains; NaN where they leave nothing",
        ),
        "beyond_feature": _v(
            "layer observable", "feature with the largest |partial correlation| on select chains"
        ),
        "beyond_pearson": _v("layer observable", "its partial correlation on test chains"),
        "beyond_control": _v(
            "layer observable", "control with the largest |partial correlation|, test chains"
        ),
        "beyond_control_pearson": _v(
            "layer control observable",
            "partial correlation of the control, its candidate chosen by it; test chains",
        ),
        "beyond_gain": _v("layer observable", "|beyond_pearson| minus that of the best control, test chains"),
        "beyond_gain_low": _v("layer observable", "lower end of its paired-bootstrap interval"),
        "beyond_gain_high": _v("layer observable", "upper end of its paired-bootstrap interval"),
        "stability": _v(
            "layer feature", "mean cosine with the matched feature of the other dictionary seeds"
        ),
        "stability_activation": _v(
            "layer feature", "mean correlation of activations with the matched feature of the other seeds"
        ),
        "subspace_angle": _v(
            "layer sae_seed angle",
            "principal angle between the decoder rows of the features that contribute most variance and those of their "
            "partners in the dictionary of another seed, matched on activations",
            "degree",
        ),
        "subspace_p_value": _v(
            "layer sae_seed",
            "chance of a mean angle as small between as many random vectors with the covariance of the inputs",
        ),
        "subspace_angle_random": _v(
            "layer angle", "its mean between spans of as many isotropic random vectors", "degree"
        ),
        "subspace_angle_covariance": _v(
            "layer angle",
            "the same of random vectors with the covariance of the dictionary's inputs",
            "degree",
        ),
        "nearest_feature": _v(
            "layer feature neighbour",
            "other live feature with the largest cosine of the decoder rows; -1 where there is none or none was asked for",
            "1",
            True,
        ),
        "nearest_cosine": _v("layer feature neighbour", "that cosine", "1", True),
        "nearest_pearson": _v(
            "layer feature neighbour", "correlation of the activations of both on test inputs", "1", True
        ),
        "top_configuration": _v(
            "layer observable example spin",
            "test configurations on which the best feature is most active, sigma^z; 0 where there are fewer",
            "1",
            True,
        ),
        "top_activation": _v("layer observable example", "activation there, mean over tokens"),
        "top_value": _v("layer observable example", "observable there"),
        "top_percentile": _v(
            "layer observable example", "percentile of that value among the test samples", "percent"
        ),
        "top_token": _v(
            "layer observable example", "token where it fires most, -1 where the dictionary sees no tokens"
        ),
        "site_position": _v("spin axis", "place of the site, in lattice constants"),
        "site_token": _v("spin", "token that the site is a part of, -1 unless that is exactly one"),
        "symmetry_pearson": _v(
            "layer symmetry observable",
            "correlation of the best feature on sigma with itself on g sigma, g a symmetry of the Hamiltonian; test chains",
        ),
        "symmetry_shift": _v(
            "layer symmetry observable", "change of its mean activation by g, in standard deviations"
        ),
        "symmetry_partner": _v(
            "layer symmetry observable",
            "other feature that follows it best: on sigma what it is on g sigma, chosen on select chains; -1 for none",
        ),
        "symmetry_partner_pearson": _v("layer symmetry observable", "that correlation on test chains"),
        "symmetry_behaviour": _v("layer symmetry observable", "invariant, partner or neither"),
        "followed_feature": _v(
            "layer observable",
            "after a quench: the feature with the largest mean |r| over the training times, on select chains",
        ),
        "followed_pearson": _v("time layer observable", "its Pearson correlation at every time, test chains"),
        "followed_low": _v("time layer observable", "lower end of its bootstrap interval"),
        "followed_high": _v("time layer observable", "upper end of its bootstrap interval"),
        "followed_control_pearson": _v(
            "time layer control observable",
            "of the candidate of every control that is chosen in the same way, once for all times; test chains",
        ),
        "followed_verdict": _v("layer observable", "verdict on the held-out times in one sentence"),
        "density": _v("layer feature", "share of test inputs on which the feature is active"),
        "participation_ratio": _v(
            "layer", "(tr C)^2 / tr C^2 of the covariance C of the dictionary's inputs"
        ),
    },
    "steering": {
        "observable_mean": _v(f"{_STEERED} observable", "expectation in the steered state"),
        "observable_error": _v(f"{_STEERED} observable", "its standard error"),
        "energy": _v(_STEERED, "energy of the steered state (total)", "J"),
        "energy_error": _v(_STEERED, "its standard error", "J"),
        "relative_energy_deviation": _v(_STEERED, "(E(scale) - E(1)) / |E(1)|"),
        "relative_energy_deviation_error": _v(_STEERED, "its standard error"),
        "infidelity": _v(_STEERED, "1 - fidelity between the steered and the original state"),
        "ess": _v(_STEERED, "effective sample size as a share of the samples"),
        "overlap": _v(
            "layer target direction estimator",
            "pooled samples (mbar): 1 - second eigenvalue of the overlap matrix, 0 where scales share no samples",
        ),
        "evolved_mean": _v(
            "layer target scale later observable",
            "expectation at a later time, the steered state of the feature brought onto the network and evolved on",
        ),
        "evolved_infidelity": _v(
            "layer target scale", "1 - fidelity of the network and the steered state it was brought onto"
        ),
        "strength": _v(
            "layer target direction scale",
            "strength of the edit (scale - 1 for the feature; matched for controls)",
        ),
        "feature": _v("layer target", "the feature that is turned"),
        "turned_feature": _v(
            "layer target direction", "the single feature whose activation is turned, -1 where there is none"
        ),
        "held": _v("target", "what natural_gradient_held holds to first order, names with commas between"),
        "slope_predicted": _v(
            "layer target direction estimator observable",
            "2 Re Cov(O_loc, d log psi / d strength) at the original state",
        ),
        "slope_predicted_error": _v("layer target direction estimator observable", "its standard error"),
        "slope_measured": _v(
            "layer target direction estimator observable", "slope of the measured curve at the original state"
        ),
        "slope_measured_error": _v("layer target direction estimator observable", "its standard error"),
        "energy_slope": _v("layer target direction estimator", "dE / d strength at the original state", "J"),
        "energy_curvature": _v(
            "layer target direction estimator", "d^2E / d strength^2 at the original state", "J"
        ),
        "susceptibility": _v(
            "target",
            "chi = d<O>/d lambda of the ground state of H - lambda O: exact, or from trainings in a field, NaN where unknown",
        ),
        "susceptibility_error": _v("target", "its standard error, 0 where it is exact"),
        "field": _v("target", "the strength lambda it was found with, NaN where it is exact", "J"),
        "efficiency": _v(
            "layer target direction estimator", "slope^2 / (chi curvature); 1 is the best any state can do"
        ),
        "reach": _v(
            "layer target direction estimator", "largest change of the target with |dE/E| within the budget"
        ),
        "reach_error": _v("layer target direction estimator", "its standard error"),
        "monotone_low": _v(
            "layer target direction estimator",
            "lower end of the scales over which the target moves monotonically",
        ),
        "monotone_high": _v("layer target direction estimator", "upper end of that range"),
    },
    "attribution": {
        "slope": _v(
            "layer feature observable", "d<O> / d scale of the feature at scale 1, 2 Re Cov(g, O_loc)"
        ),
        "slope_error": _v("layer feature observable", "its standard error"),
        "leverage": _v(
            "layer feature observable", "slope / sqrt(metric): NaN for a feature that does nothing"
        ),
        "metric": _v(
            "layer feature",
            "Var(g), g = d log psi / d scale: the infidelity grows as metric (scale - 1)^2 at first",
        ),
        "metric_error": _v("layer feature", "its standard error"),
        "energy_force": _v("layer feature", "dE / d scale at scale 1", "J"),
        "energy_force_error": _v("layer feature", "its standard error", "J"),
        "attribution": _v(
            "layer predictor feature quantity",
            "effect of the feature, from its mean activation: root mean square over samples, or on an expectation value",
        ),
        "completeness_error": _v(
            "layer",
            "integrated gradients of log psi summed over features against what all features together do, relative, rms",
        ),
        "ablated_feature": _v(
            "layer ablated", "the features that are ablated: largest metric first, then others; -1 for none"
        ),
        "ablation_effect": _v("layer ablation ablated quantity", "effect of the feature by ablation"),
        "ablation_effect_error": _v(
            "layer ablation ablated quantity", "its standard error, for expectation values"
        ),
        "ablation_attribution": _v(
            "layer predictor ablation ablated quantity",
            "the same effect by attribution, from the same baseline",
        ),
        "ablation_infidelity": _v(
            "layer ablation ablated", "1 - fidelity of the ablated state with the original one"
        ),
        "ablation_ess": _v("layer ablation ablated", "effective sample size as a share of the samples"),
        "agreement": _v(
            "layer predictor ablation quantity",
            "Pearson correlation of attribution with ablation: over samples and features, or over features",
        ),
        "rank_agreement": _v("layer predictor ablation quantity", "Spearman correlation of the same pairs"),
        "source_layer": _v("edge", "layer that the edge comes from"),
        "source_feature": _v("edge", "feature that the edge comes from, -1 where there is none"),
        "target_layer": _v("edge", "layer that the edge leads to"),
        "target_feature": _v("edge", "feature that the edge leads to, -1 where there is none"),
        "target_observable": _v("edge", "observable whose best feature the target is"),
        "weight": _v("edge", "mean of source activation x d (target activation) / d (source activation)"),
        "weight_error": _v("edge", "its standard error"),
        "edge_effect": _v(
            "edge", "mean target activation minus that with the source set to zero (sums over tokens)"
        ),
        "edge_effect_error": _v("edge", "its standard error"),
    },
    "crosscoder": {
        "encoder": _v("sae_seed view feature width", "encoder rows, acting on raw activations of the view"),
        "decoder": _v("sae_seed view feature width", "decoder rows, writing raw activations of the view"),
        "encoder_bias": _v("sae_seed feature", "encoder bias, one for all views"),
        "decoder_bias": _v(
            "sae_seed view width", "decoder bias, subtracted from the input and added to the output"
        ),
        "threshold": _v(
            "sae_seed feature", "what a pre-activation must exceed, of kinds that have thresholds"
        ),
        "view_scale": _v("view", "factor s that makes E|s (x - mean)|^2 = width on the train split"),
        "loss": _v("sae_seed step", "training loss per element of the scaled input", "1", True),
        "l0": _v("sae_seed step", "mean number of active features", "1", True),
        "dead_fraction": _v("sae_seed step", "share of features that have not fired lately", "1", True),
        "feature_density": _v(
            "sae_seed feature", "share of select-split inputs on which the feature is active"
        ),
        "decoder_norm": _v("sae_seed view feature", "length of the decoder row in scaled units, s |d|"),
        "norm_share": _v(
            "sae_seed view feature", "its share in the sum over views: the relative norm of the feature"
        ),
        "specific_view": _v(
            "sae_seed feature",
            "position of the view that the feature is specific to; -1: shared by all, -2: neither, -3: never active",
        ),
        "live_features": _v("sae_seed", "features that are active on the select split"),
        "shared_features": _v("sae_seed", "live features that all views share"),
        "specific_features": _v("sae_seed view", "live features specific to the view"),
        "decoder_cosine": _v(
            "sae_seed view other_view feature",
            "cosine of the decoder rows of two views with a common basis, else NaN",
        ),
        "explained_variance": _v(
            "sae_seed view", "1 - sum |e|^2 / sum |x - mean|^2 of the view on the select split"
        ),
        "separate_explained_variance": _v(
            "sae_seed view", "that of a dictionary of this view alone, trained by the same record"
        ),
        "best_feature": _v("observable", "feature of the first seed with the largest |r| on select chains"),
        "best_pearson": _v("observable", "its Pearson correlation on test chains"),
        "best_low": _v("observable", "lower end of its bootstrap interval"),
        "best_high": _v("observable", "upper end of its bootstrap interval"),
        "control_pearson": _v("control observable", "Pearson correlation of the control on test chains"),
        "control_low": _v("control observable", "lower end of its bootstrap interval"),
        "control_high": _v("control observable", "upper end of its bootstrap interval"),
        "gain": _v("observable", "|r| of the best feature minus |r| of the best control, test chains"),
        "gain_low": _v("observable", "lower end of the paired-bootstrap interval of the gain"),
        "gain_high": _v("observable", "upper end of the paired-bootstrap interval of the gain"),
        "untrained_explained_variance": _v(
            "initialisation view", "explained variance of the crosscoder of untrained networks"
        ),
        "untrained_live_features": _v("initialisation", "its features that are active on the select split"),
        "untrained_shared_features": _v("initialisation", "its live features that all views share"),
        "untrained_specific_features": _v("initialisation view", "its live features specific to the view"),
        "untrained_pearson": _v("initialisation observable", "its best feature, each initialisation"),
    },
    "completeness": {
        "order": _v("string", "number of spins in the product"),
        "frequency": _v("string", "share of test tokens on which the product has its rarer sign"),
        "weight": _v("string", "|r| of its mean over the tokens with log|psi|, test chains"),
        "best_feature": _v("layer string", "feature with the largest |r| over tokens of the select chains"),
        "pearson": _v(
            "layer source string",
            "correlation over tokens of the test chains, of the candidate chosen on the select chains",
        ),
        "share": _v(
            "layer source spins",
            "share of the products of so many spins whose |r| reaches the attribute threshold",
        ),
        "half": _v("layer predictor", "where the sigmoid through having a feature is 1/2"),
        "slope": _v("layer predictor", "its slope in the logarithm of the predictor"),
        "slope_error": _v("layer predictor", "its standard error"),
    },
    "heads": {
        "receiver": _v(
            "counterfactual readout block head",
            "effect of the head without later attention, as a share of that of the counterfactual; mean over sub-probes",
        ),
        "sender": _v("counterfactual readout block head", "effect through the heads of later blocks alone"),
        "total": _v("counterfactual readout block head", "effect with all that is behind computed again"),
        "gradient": _v("counterfactual readout block head", "total effect as predicted by gradients"),
        "effect": _v(
            "counterfactual readout",
            "effect of the counterfactual, rms over sub-probes: of its input on log|psi|, else of all heads patched at once",
        ),
        "resolved": _v(
            "counterfactual readout", "share of the sub-probes with an effect beyond twice its error"
        ),
        "kappa": _v(
            "counterfactual readout block head",
            "share of the sub-probes in which the head reaches the threshold",
        ),
        "raw_score": _v("counterfactual readout block head", "max(|receiver|, |sender|) kappa"),
        "score": _v("counterfactual readout block head", "the same scaled to 0..1 over the heads"),
        "mean_score": _v("block head", "mean of the score over counterfactuals and readouts"),
        "set_score": _v("sample_set block head", "mean score from one of the disjoint sets of samples"),
        "rank": _v("block head", "place by mean score, 1 for the largest"),
        "gradient_score": _v(
            "block head", "mean score with the total effect by gradients in place of patching"
        ),
        "gradient_agreement": _v(
            "counterfactual readout", "rank correlation over heads of |gradient| with |total|"
        ),
        "infidelity": _v("order knocked", "1 - fidelity of the state without the first heads of the order"),
        "energy_change": _v("order knocked", "(E without these heads - E) / |E|"),
        "energy_change_error": _v("order knocked", "its standard error"),
        "ess": _v("order knocked", "effective sample size as a share of the samples"),
        "area": _v("order", "mean of the infidelity over the share of heads that is knocked out"),
    },
    # Beside the report of a sweep, no stage: its points that share a Hamiltonian, compared (``interpret/alarm.py``).
    "comparison": {
        "directory": _v("point", "directory of the point inside that of the sweep"),
        "energy": _v("point", "energy (total)", "J"),
        "energy_error": _v("point", "its standard error", "J"),
        "v_score": _v("point", "V-score N Var(H) / E^2"),
        "check_energy": _v(
            "point", "energy (total) from samples of |psi|, weighted; NaN where not computed", "J"
        ),
        "check_energy_error": _v("point", "its standard error", "J"),
        "check_v_score": _v("point", "V-score from the same samples"),
        "check_v_score_error": _v("point", "its standard error"),
        "flip_balance": _v(
            "point", "mean of sign(m) min(1, |psi(-sigma) / psi(sigma)|^2), 0 if well sampled"
        ),
        "flip_balance_error": _v("point", "its standard error"),
        "observable_mean": _v("point observable", "Born expectation value"),
        "observable_error": _v("point observable", "its standard error"),
        "first": _v("pair", "label of the first point"),
        "second": _v("pair", "label of the second point"),
        "energy_difference": _v("pair", "energy of the first minus that of the second (total)", "J"),
        "energy_difference_error": _v("pair", "its standard error", "J"),
        "relative_energy_difference": _v("pair", "|difference| / larger |E|"),
        "nearly_degenerate": _v("pair", "1 where the energies are equal as far as the states can say"),
        "observable_difference": _v("pair observable", "mean of the first minus that of the second"),
        "z": _v("pair observable", "that in combined standard errors"),
        "p_value": _v("pair observable", "two-sided, times the number of comparisons (Bonferroni)"),
        "effect": _v("pair observable", "that in standard deviations of the samples"),
        "differs": _v("pair observable", "1 where the difference is significant and large enough to matter"),
        "fidelity": _v(
            "pair", "|<a|b>|^2 from the samples of both; meaningless where the closure is far from 1"
        ),
        "fidelity_error": _v("pair", "its standard error"),
        "closure": _v("pair", "E_a|r|^2 E_b|1/r|^2, r = psi_b / psi_a: 1 where the samples reach each other"),
        "fidelity_exact": _v(
            "pair", "fidelity from the sum over all configurations where they are few, else NaN"
        ),
        "fidelity_bound": _v("pair", "upper bound of the fidelity from the diagonal observables"),
        "matched_features": _v("pair layer", "features of the first with a partner in the second dictionary"),
        "unmatched_features": _v("pair side layer", "live features without a partner"),
        "partner": _v("pair layer feature", "matched feature of the second dictionary, -1 without one"),
        "partner_pearson": _v("pair layer feature", "correlation with it on the samples of both states"),
        "feature_shift": _v(
            "pair side layer feature",
            "mean activation on samples of the first minus second, in standard deviations",
        ),
        "feature_shift_z": _v("pair side layer feature", "that difference in combined standard errors"),
        "carrier": _v("pair side layer", "feature with the largest difference that counts, -1 without one"),
        "carrier_observable": _v(
            "pair side layer", "observable that it correlates with most on the samples of both"
        ),
        "carrier_pearson": _v("pair side layer", "that correlation"),
        "verdict": _v("pair", "verdict in one sentence"),
    },
    # Beside the report of a sweep, no stage: dictionaries against size and compute (``interpret/scaling.py``).
    "scaling": {
        "unexplained": _v(
            "group layer features steps learning_rate sae_seed", "1 - explained variance, select split"
        ),
        "training_loss": _v(
            "group layer features steps learning_rate sae_seed",
            "training loss per element of the scaled input, mean over the last 1 % of the steps",
        ),
        "dead": _v("group layer features steps learning_rate sae_seed", "share of dead features at the end"),
        "compute": _v(
            "group layer features steps",
            "operations of the training of one dictionary: steps x batch x those of an input",
        ),
        "budget_compute": _v("group layer budget", "operations of a budget"),
        "optimal_loss": _v("group layer budget", "lowest unexplained share of the variance at this budget"),
        "optimal_loss_low": _v("group layer budget", "lower end of its interval"),
        "optimal_loss_high": _v("group layer budget", "upper end of its interval"),
        "optimal_features": _v("group layer budget", "number of features that reaches it"),
        "optimal_features_low": _v("group layer budget", "lower end of its interval"),
        "optimal_features_high": _v("group layer budget", "upper end of its interval"),
        "optimal_steps": _v("group layer budget", "number of steps that goes with it"),
        "optimal_steps_low": _v("group layer budget", "lower end of its interval"),
        "optimal_steps_high": _v("group layer budget", "upper end of its interval"),
        "optimum_inside": _v(
            "group layer budget", "1 where the best size is no end of the sizes that reach the budget"
        ),
        "optimal_learning_rate": _v(
            "group layer features steps", "best learning rate, NaN where it is an end of those tried"
        ),
        "exponent": _v(
            "group layer quantity", "b of the law a C^b of the optimum at a budget of C operations"
        ),
        "exponent_low": _v("group layer quantity", "lower end of its interval, NaN with one seed"),
        "exponent_high": _v("group layer quantity", "upper end of its interval, NaN with one seed"),
        "prefactor": _v("group layer quantity", "a of this law"),
        "fate_share": _v(
            "group layer growth fate",
            "share of the smaller dictionary's live features without, with one, with several descendants in the larger; of the "
            "larger's without a parent",
        ),
        "descent_threshold": _v(
            "group layer growth", "cosine that a descendant exceeds: 99 % of random directions do not"
        ),
        "parent": _v("group layer growth feature", "nearest feature of the smaller dictionary, -1 if dead"),
        "parent_cosine": _v("group layer growth feature", "cosine of the decoder rows"),
    },
}

OF_SWEEPS = ("comparison", "scaling")
STAGES = tuple(name for name in SCHEMA if name not in OF_SWEEPS)

# Dimensions and coordinates: what a label means, and its unit. Dimensions not listed in UNLABELLED always carry labels.
COORDINATES: dict[str, tuple[str, str]] = {
    "later": ("time after the quench, later than that of steering", "1/J"),
    "held_out": ("1 where no dictionary was trained and nothing was chosen", "1"),
    "time": ("time after the quench; imaginary where the run says so", "1/J"),
    "step": ("optimisation step, counted from 0", "1"),
    "checkpoint": ("optimisation steps done", "1"),
    "view": ("layer of a network that a crosscoder reads and writes", "1"),
    "view_layer": ("layer of the view", "1"),
    "view_network": ("network of the view", "1"),
    "other_view": ("another view of the same feature", "1"),
    "chain": ("Markov chain", "1"),
    "draw": ("recorded sample within its chain", "1"),
    "spin": ("lattice site", "1"),
    "token": ("token: a patch of neighbouring sites", "1"),
    "pooled_token": ("the sum over tokens, which the head sees as one", "1"),
    "split": ("what the chain is used for: train, select or test", "1"),
    "observable": ("name of the observable", "1"),
    "subsystem": ("part of the lattice whose entanglement with the rest is measured", "1"),
    "layer": ("place in the network", "1"),
    "sae_seed": ("seed of the dictionary", "1"),
    "angle": ("place among the principal angles, the smallest first", "1"),
    "neighbour": ("place among the nearest features, the nearest first", "1"),
    "example": ("place among the most active configurations, the most active first", "1"),
    "axis": ("axis in space", "1"),
    "symmetry": ("symmetry of lattice and Hamiltonian", "1"),
    "initialisation": ("seed of an untrained control network", "1"),
    "feature": ("dictionary feature", "1"),
    "control": ("what a feature has to beat", "1"),
    "target": ("observable that the feature was chosen for", "1"),
    "direction": ("what is turned: the feature or one of its controls", "1"),
    "scale": ("factor on the feature's activation; 1 is the original state", "1"),
    "predictor": ("how the effect of a feature is predicted", "1"),
    "ablation": ("what the activations of an ablated feature are replaced by", "1"),
    "ablated": ("place among the ablated features", "1"),
    "quantity": ("what is affected: sample by sample, or as an expectation value (mean_...)", "1"),
    "edge": ("edge from a feature to a feature of the next layer", "1"),
    "estimator": ("how expectations in the steered state are computed", "1"),
    "point": ("point of a sweep", "1"),
    "pair": ("two points with one Hamiltonian", "1"),
    "side": ("whose dictionary it is: that of the first or of the second point", "1"),
    "string": ("product of sigma^z on the sites z0 z1 ... as the first token sees them", "1"),
    "spins": ("spins in a product", "1"),
    "source": (
        "what is to have a feature: the dictionary, a single neuron, dictionaries of untrained networks",
        "1",
    ),
    "counterfactual": ("what an attention head sees instead: kind of map of the configurations", "1"),
    "readout": ("what the effect of a head is measured by", "1"),
    "block": ("block of the network, counted from 1", "1"),
    "head": ("attention head of the block, counted from 1", "1"),
    "sample_set": ("disjoint set of samples", "1"),
    "order": ("order in which heads are knocked out", "1"),
    "match_step": ("step in which heads learn the outputs of a teacher's", "1"),
    "infidelity_step": ("step that lowers the infidelity to a teacher", "1"),
    "knocked": ("number of heads that are knocked out", "1"),
    "group": ("points of a sweep that differ in nothing but their dictionaries", "1"),
    "features": ("number of features of the dictionary", "1"),
    "steps": ("number of optimisation steps", "1"),
    "learning_rate": ("step length of Adam", "1"),
    "budget": ("budget of operations, from small to large", "1"),
    "growth": ("from one size of the dictionary to the next", "1"),
    "fate": ("what becomes of the features of the smaller dictionary; new: of the larger", "1"),
}
UNLABELLED = ("parameter", "width")  # positions in a vector that have no meaning of their own

CONVENTIONS = (
    "configurations are int8 in {-1, +1} in the sigma^z basis; energies are totals in units of J; functions of sigma^z and of "
    "sigma^x are in Pauli units, products S_i . S_j in spin units; complex variables x are stored as x_re and x_im; log_psi is "
    "unnormalised; NaN means not computed"
)

LAYER_DIMS = ("chain", "draw", "token", "width")
HEAD_DIMS = ("chain", "draw", "pooled_token", "width")  # behind the sum over tokens a single one is left


def declaration(stage: str, name: str) -> Variable:
    """Declaration of a variable of a stage file. Raises KeyError naming both when it is not declared."""
    table = SCHEMA[stage]
    if name in table:
        return table[name]
    if name.endswith(("_re", "_im")) and name[:-3] in table:
        base, part = table[name[:-3]], "real part" if name.endswith("_re") else "imaginary part"
        return Variable(base.dims, f"{base.long_name}, {part}", base.units, base.compress, base.volatile)
    if stage == "activations":
        return Variable(HEAD_DIMS if name == "head" else LAYER_DIMS, f"activations of layer {name}")
    raise KeyError(f"{stage}.nc: variable {name!r} is not declared in datasets/schema.py")


def labelled(
    stage: str,
    variables: Mapping[str, Any],
    coords: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Dataset of a stage from plain arrays.

    ``variables`` maps declared names to arrays; a complex declaration such as ``log_psi`` becomes ``log_psi_re`` and
    ``log_psi_im``. ``coords`` maps a dimension to its labels, or a name to a pair (dimension, labels). Dimensions without
    labels are counted from 0, except those in ``UNLABELLED``. Where there are times, any variable may have a leading ``time``.
    """
    given = dict(coords or {})
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]] = {}
    for name, value in variables.items():
        for part, data in _stored(stage, name, np.asarray(value)).items():
            declared = declaration(stage, part)
            dims = declared.over(data.ndim) if "time" in given else declared.dims
            arrays[part] = (dims, data, {"long_name": declared.long_name, "units": declared.units})
    dataset = xr.Dataset(arrays, attrs=dict(attributes or {}))
    counted = {
        str(dim): np.arange(size) for dim, size in dataset.sizes.items() if dim not in (*UNLABELLED, *given)
    }
    for name, labels in (given | counted).items():
        dims, data = labels if isinstance(labels, tuple) else (name, labels)
        long_name, units = COORDINATES.get(name, (name.replace("_", " "), "1"))
        dataset = dataset.assign_coords(
            {name: (dims, np.asarray(data), {"long_name": long_name, "units": units})}
        )
    return dataset


def _stored(stage: str, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """The array as it is stored: complex ones (and log_psi, always) as two real parts."""
    if f"{name}_re" in SCHEMA[stage] or not (np.iscomplexobj(array) or name == "log_psi"):
        return {name: array}
    return {f"{name}_re": np.real(array).astype(np.float64), f"{name}_im": np.imag(array).astype(np.float64)}


def encoding(stage: str, name: str, array: xr.DataArray) -> dict[str, Any]:
    """NetCDF encoding of a variable: no fill value, and zlib 4 with shuffle where the table says that it pays.

    Texts are arrays of characters, which every tool reads: HDF5 2.2 crashes when a file with strings of variable length as
    coordinates is opened a few times more while it is open.
    """
    if array.dtype.kind not in "biuf":
        return {"dtype": "S1"}
    pays = _is(stage, name, "compress") and array.size > 0
    return {"_FillValue": None} | ({"zlib": True, "complevel": 4, "shuffle": True} if pays else {})


def volatile_variables(stage: str, dataset: xr.Dataset) -> list[str]:
    """Variables of a stage's dataset that hold timings."""
    return [str(name) for name in dataset.variables if _is(stage, str(name), "volatile")]


def _is(stage: str, name: str, property: str) -> bool:
    try:
        return bool(getattr(declaration(stage, name), property))
    except KeyError:
        return False
