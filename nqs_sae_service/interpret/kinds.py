"""The directions that a spec can ask for, by name, and what each of them asks. Spec, stage and report read them here.

A control moves the state as far as the feature does (equal infidelity) and needs less: where it moves the target as much, the
feature has shown nothing. The others need the dictionary too; they say what its other features, or all together, could do.
"""

from __future__ import annotations

FEATURE = "feature"
CONTROLS = {
    "random_direction": "its activation along a random vector: does it take the decoder row?",
    "other_feature": "another live feature, drawn at random: does it take this feature?",
    "jastrow_dial": "psi exp(a O / 2), for diagonal targets: does it take a network?",
    "constant_shift": "one random vector added to every token of every configuration: does it take an activation?",
    "difference_of_means": "mean activation above the target's median minus the mean below: does it take a dictionary?",
    "probe": "the vector along which a linear regression reads the target: does reading it move it?",
    "principal_component": "the principal component with the largest |r| with the target: does it take a direction of its own?",
}
OF_THE_DICTIONARY = {
    "clamp": "the same feature clamped, to its largest activation at strength 1: does its own size matter?",
    "add": "its decoder row added everywhere, times its largest activation: does it matter where it fires?",
    "leverage_feature": "the feature with the largest |slope| / sqrt(metric) on the select chains: does |r| choose well?",
    "natural_gradient": "all features at once, the most that they can do to first order: does it take a single feature?",
    "natural_gradient_held": "the same with the energy and other observables held to first order: can it be moved alone?",
}
DIRECTIONS = (FEATURE, *CONTROLS, *OF_THE_DICTIONARY)
BY_DEFAULT = DIRECTIONS[:6]
