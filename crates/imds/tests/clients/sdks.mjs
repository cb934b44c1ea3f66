// Two public Node clients, unmodified: OpenTelemetry's detector and the identity SDK's probe.
import { createRequire } from "node:module";

const require = createRequire(process.env.CLIENTS + "/node/");
const { azureVmDetector } = require("@opentelemetry/resource-detector-azure");
const { ManagedIdentityCredential } = require("@azure/identity");

const detected = azureVmDetector.detect();
const telemetry = {};
for (const [name, value] of Object.entries(detected.attributes)) telemetry[name] = await value;
const begun = Date.now();
let identity;
try {
  await new ManagedIdentityCredential({ retryOptions: { maxRetries: 0 } }).getToken("https://example.invalid/.default");
  identity = "a token";
} catch (error) {
  identity = error.name;
}
console.log(JSON.stringify({ telemetry, identity, seconds: (Date.now() - begun) / 1000 }));
process.exit(0);
