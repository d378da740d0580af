"""Layer 2: the network to walk, its prices, the demand, the score and the Gymnasium environment."""

from gymnasium.envs.registration import register, registry

if "plywise/Compression-v0" not in registry:
    register(id="plywise/Compression-v0", entry_point="plywise.env.walk.compression_env:CompressionEnv")
