// The table of edge servers. Start reading at `showCluster`.

import { state } from "./state.js";
import { $, count, put, time } from "./words.js";

const SERVERS = 100; // rows at most

export function showCluster(cluster) {
  state.cluster = cluster;
  const { servers } = cluster, up = servers.filter((server) => server.up).length;
  const tasks = ["unfinished", "done", "failed", "cancelled"].map((name) => `${count(cluster[name] ?? 0)} ${name}`);
  put($("totals"), `${count(up)} of ${count(servers.length)} up, ${tasks.join(", ")}, ${cluster.scheduler}`);
  $("trouble").hidden = !cluster.trouble;
  put($("trouble"), cluster.trouble ?? "");
  if (!$("cluster").open) return;
  $("models-head").hidden = !servers.some((server) => server.models?.length);
  const longest = Math.max(1e-9, ...servers.map((server) => server.backlog_s));
  servers.slice(0, SERVERS).forEach((server, k) => showServer($("servers").rows[k] ?? newRow(), server, longest));
  while ($("servers").rows.length > Math.min(SERVERS, servers.length)) $("servers").deleteRow(-1);
  $("more-servers").hidden = servers.length <= SERVERS;
  put($("more-servers"), `${count(servers.length - SERVERS)} more are not listed here.`);
}

function newRow() {
  const row = $("servers").insertRow(), name = document.createElement("th");
  name.scope = "row";
  row.append(name, ...Array.from({ length: 6 }, () => document.createElement("td")));
  row.cells[3].className = "bar";
  row.cells[3].append(document.createElement("span"), document.createElement("div"));
  return row;
}

function showServer(row, server, longest) {
  const [name, up, tasks, backlog, step, restarts, models] = row.cells;
  row.className = server.up ? "" : "down";
  name.title = server.machine ?? "";
  put(name, server.edge_server);
  put(up, server.up ? "up" : "down");
  put(tasks, count(server.tasks));
  put(backlog.firstChild, time(server.backlog_s));
  backlog.lastChild.style.width = `${(100 * server.backlog_s) / longest}%`;
  put(step, time(server.seconds_per_step));
  put(restarts, count(server.restarts));
  models.hidden = $("models-head").hidden;
  put(models, models.hidden ? "" : `${server.models.join(", ") || "none"}, ${count(server.loads)}`);
}
