"""Found first on PYTHONPATH, imported by every Python that starts: the network is off there."""

import no_network

no_network.block()
