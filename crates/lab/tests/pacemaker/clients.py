"""Public clients, unmodified, as Debian ships them: cloud-init's Azure data source and the Azure Linux agent's client."""
import json
import sys
import time

from azurelinuxagent.common.protocol.imds import ImdsClient
from cloudinit.sources import DataSourceAzure as azure
from cloudinit.sources.azure import imds

document = imds.fetch_metadata_with_api_fallback(time.time() + 20)
network = azure.generate_network_config_from_instance_network_metadata(
    document["network"], apply_network_config_for_secondary_ips=True
)
agent = ImdsClient()
json.dump(
    {
        "cloud_init": azure._hostname_from_imds(document),
        "network": [device["match"]["macaddress"] for device in network["ethernets"].values()],
        "agent": agent.validate(),
        "agent_compute": agent.get_compute().name,
    },
    sys.stdout,
)
