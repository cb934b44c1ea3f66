// Node's own HTTP client with a keep-alive pool, as the telemetry and identity SDKs use it: a GET, then at once a POST on
// the pooled connection, then a GET that asks for the connection to be closed and another one after it.
import http from "node:http";

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const call = (method, path, body, headers = {}) =>
  new Promise((resolve, reject) => {
    const request = http.request(
      { host: "169.254.169.254", path, method, agent, headers: { Metadata: "True", ...headers } },
      (answer) => {
        let text = "";
        answer.on("data", (part) => (text += part));
        answer.on("end", () => resolve({ status: answer.statusCode, text }));
      },
    );
    request.on("error", reject);
    request.end(body);
  });

const events = "/metadata/scheduledevents?api-version=2020-07-01";
const results = [];
for (let round = 0; round < 5; round++) {
  results.push((await call("GET", events)).status);
  results.push((await call("POST", events, JSON.stringify({ StartRequests: [] }))).status);
  results.push((await call("GET", events, undefined, { Connection: "close" })).status);
}
const compute = JSON.parse((await call("GET", "/metadata/instance/compute?api-version=2021-12-13&format=json")).text);
console.log(JSON.stringify({ results, name: compute.name, vmId: compute.vmId }));
agent.destroy();
