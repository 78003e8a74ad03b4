"""A finished student in other formats: what writes one, what runs it in the student's place, what is noted of it.

Exports stand beside the weights, as hubs keep them (`onnx/model.onnx`), and `exports.json` says of each how far its
outputs are from those of torch, what it scores and what it costs.
"""
