"""How the embedded model was made. It stays on the control node.

toys       what a toy is, and the concept
captions   captions, and the training set
drawings   drawing a toy
views      how a drawing was resized and cropped
tokenizer  networks  layouts  training   the parts of the model, and how they are trained
make       all of it: the program
"""
