"""The two workflows: steps that measure, decide, and write down what they decided on."""
