"""Model files: written whole, judged before anything of them runs, loaded only where what is asked for is trusted."""
