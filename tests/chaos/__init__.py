"""`make chaos`: numbered uploads while something breaks. None may go unheard."""
