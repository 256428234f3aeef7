"""What `/metrics` shows of a node at the moment of asking; what is counted while it happens is in `telemetry.Metrics`.

Counts begin with the process, those of a folder with its start on this node. Names are documented in docs/operations.md.
"""

from __future__ import annotations

from dataclasses import asdict

from stnode.node.node import Node
from stnode.node.status import NodeStatus
from stnode.telemetry import Family

_OUTCOMES = ("won", "lost", "unknown", "void")


def families(node: Node, status: NodeStatus) -> list[Family]:
    """All metrics that are read rather than counted. `status` is the node's, of now."""
    came, went = node.connections.bytes_moved()
    commits = asdict(node.store.status().journal.counts)
    runners = node.runners()
    folders = status.folders
    return [
        Family("stnode_connections", "Devices connected now.", "gauge", (), {(): sum(device.connected for device in status.devices)}),
        Family(
            "stnode_siblings",
            "Other nodes of the store.",
            "gauge",
            ("state",),
            {
                ("known",): sum(not sibling.stopped for sibling in status.siblings),
                ("connected",): sum(sibling.connected for sibling in status.siblings),
            },
        ),
        Family("stnode_in_sync", "1 while no folder lacks anything that a device announced.", "gauge", (), {(): int(status.in_sync)}),
        Family("stnode_net_bytes", "Bytes from and to devices, inside TLS.", "counter", ("direction",), {("in",): came, ("out",): went}),
        Family("stnode_folder_files", "Live files of a folder.", "gauge", ("folder",), {(f.id,): f.files for f in folders}),
        Family("stnode_folder_bytes", "Live bytes of a folder.", "gauge", ("folder",), {(f.id,): f.bytes for f in folders}),
        Family("stnode_folder_need_files", "Items a folder still needs.", "gauge", ("folder",), {(f.id,): f.need_files for f in folders}),
        Family("stnode_folder_need_bytes", "Bytes a folder still needs.", "gauge", ("folder",), {(f.id,): f.need_bytes for f in folders}),
        Family("stnode_folder_history_bytes", "Bytes of old versions.", "gauge", ("folder",), {(f.id,): f.history_bytes for f in folders}),
        Family(
            "stnode_folder_held_deletions",
            "Files whose deletion waits for a word.",
            "gauge",
            ("folder",),
            {(f.id,): f.pending_deletions.files if f.pending_deletions else 0 for f in folders},
        ),
        Family("stnode_folder_lost_files", "Files with lost content.", "gauge", ("folder",), {(f.id,): f.lost_count for f in folders}),
        Family(
            "stnode_pulled_bytes",
            "Verified bytes received from devices.",
            "counter",
            ("folder",),
            {(name,): runner.transfer.received_bytes for name, runner in runners.items()},
        ),
        Family(
            "stnode_served_bytes",
            "Bytes of blocks served to devices.",
            "counter",
            ("folder",),
            {(name,): runner.server.served_bytes for name, runner in runners.items()},
        ),
        Family(
            "stnode_commits",
            "Commits that this node tried, by what became of them.",
            "counter",
            ("outcome",),
            {(outcome,): commits[outcome] for outcome in _OUTCOMES},
        ),
        Family("stnode_gc_freed_bytes", "Bytes of garbage deleted.", "counter", (), {(): status.store.collection.freed_bytes}),
        Family("stnode_gc_deleted_objects", "Objects of garbage deleted.", "counter", (), {(): status.store.collection.deleted_objects}),
        Family("stnode_gc_waiting_bytes", "Garbage that waits for its grace.", "gauge", (), {(): status.store.collection.waiting_bytes}),
        Family("stnode_gc_last_pass", "Unix time of the last pass here.", "gauge", (), {(): status.store.collection.last_pass_s or 0}),
        Family("stnode_queue_packs", "Packs that wait to be stored.", "gauge", (), {(): status.store.queued_packs}),
        Family("stnode_queue_bytes", "Bytes of packs that wait to be stored.", "gauge", (), {(): status.store.queued_bytes}),
        Family("stnode_queue_age_seconds", "How long the oldest of them has waited.", "gauge", (), {(): status.store.queued_age_s}),
        Family("stnode_spool_bytes", "Bytes in the spool on disk.", "gauge", (), {(): status.store.spool_bytes}),
        Family("stnode_uploads_mended", "Uploads that the store lost and got again.", "counter", (), {(): status.store.uploads_mended}),
        Family("stnode_journal_head", "Number of the newest commit applied here.", "gauge", (), {(): status.store.head}),
    ]
