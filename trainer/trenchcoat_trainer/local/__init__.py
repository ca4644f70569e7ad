"""`trenchcoat run`: the stages of one spec as processes of this machine, with a folder as the store."""
