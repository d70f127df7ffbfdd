"""The fused first layer of the interaction; its reference is `ranker.arches.interaction.interaction_first_layer`."""
