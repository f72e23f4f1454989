"""How a release moves: from environment to environment, and inside one from region to region."""
