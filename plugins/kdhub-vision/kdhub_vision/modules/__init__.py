"""Networks trained module by module: each module of a student learns alone, in the place of one block of a meta model
that all share (`m2mkd`), and mixtures of experts as students."""
