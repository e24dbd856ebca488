"""Real data with a source: scikit-learn's digits, MNIST, and the Random Anomaly task made from either."""
