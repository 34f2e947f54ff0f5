"""The networks: video transformer with its memories' entrances, image autoencoder, depth."""
