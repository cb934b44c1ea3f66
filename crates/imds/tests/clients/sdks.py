"""Three public Python clients, unmodified: the guest agent's metadata client, OpenTelemetry's detector, azure-identity."""
import json
import sys
import time

from azure.core.exceptions import ClientAuthenticationError
from azure.identity import CredentialUnavailableError, ManagedIdentityCredential
from azurelinuxagent.common.protocol.imds import ImdsClient
from opentelemetry.resource.detector.azure.vm import AzureVMResourceDetector

agent = ImdsClient("127.0.0.1")
begun = time.monotonic()
try:
    ManagedIdentityCredential().get_token("https://example.invalid/.default")
    identity = "a token"
except (CredentialUnavailableError, ClientAuthenticationError) as error:
    identity = type(error).__name__
seconds = time.monotonic() - begun
json.dump(
    {
        "agent": agent.validate(),
        "agent_compute": agent.get_compute().name,
        "telemetry": dict(AzureVMResourceDetector().detect().attributes),
        "identity": identity,
        "identity_seconds": seconds,
    },
    sys.stdout,
)
