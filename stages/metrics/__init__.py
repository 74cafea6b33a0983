"""Videos -> numbers (METHOD 6). Networks give features, plain functions make scores of them: features are computed once
and serve several scores. Compare only numbers that the same code and the same networks gave."""
