"""cloud-init's Azure data source, its metadata part, unmodified."""
import json
import sys

from cloudinit.sources import DataSourceAzure as azure

document = azure.get_metadata_from_imds(retries=1, api_version=azure.IMDS_VER_WANT)
oldest = azure.get_metadata_from_imds(retries=1, api_version=azure.IMDS_VER_MIN)
network = azure.generate_network_config_from_instance_network_metadata(document["network"])
json.dump(
    {
        "user": azure._username_from_imds(document),
        "host": azure._hostname_from_imds(document),
        "no_password": azure._disable_password_from_imds(document),
        "userdata": azure._userdata_from_imds(document),
        "pps": document["extended"]["compute"]["ppsType"],
        "key": azure._key_is_openssh_formatted(document["compute"]["publicKeys"][0]["keyData"]),
        "network": network,
        "oldest": oldest["compute"]["name"],
    },
    sys.stdout,
)
