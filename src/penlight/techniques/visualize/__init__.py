"""What would excite a unit most, and least? One loop (`engine`) and the parts that methods are made of."""
