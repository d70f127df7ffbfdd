"""The fused first layer of the interaction; its reference is `ranker.interaction.interaction_first_layer`."""
