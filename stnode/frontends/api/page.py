"""The status page: one plain HTML document, no scripts, renewed by the browser every few seconds."""

from __future__ import annotations

from html import escape

from stnode.node.present import size_text, span_text
from stnode.node.status import DeviceStatus, FolderStatus, NodeStatus, SiblingStatus

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884 }
h2 { margin-top: 2rem; font-size: 1.1rem } code { font-size: 85%; overflow-wrap: anywhere } .bad { color: #c33 }
"""


def status_page(status: NodeStatus) -> str:
    """The whole document for `status`."""
    store = status.store
    trouble = (
        f'<p class="bad">The store does not answer: {escape(store.unavailable_reason)}</p>' if store.unavailable_since_s is not None else ""
    )
    if status.given_way:
        trouble += f'<p class="bad">{escape(status.given_way)}</p>'
    warnings = "".join(f'<p class="bad">{escape(text)}</p>' for text in store.warnings)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(status.name)} – stnode</title>
<meta http-equiv="refresh" content="5"><meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>{escape(status.name)}</h1>
<p>Device ID <code>{escape(status.device_id)}</code><br>stnode {escape(status.version)}, up {span_text(status.uptime_s)},
listening on {escape(", ".join(status.listen) or "nothing")}</p>
<h2>Store</h2><p><code>{escape(store.url)}</code>: commit {store.head}, {store.objects:,} objects, {size_text(store.bytes)}</p>{trouble}{warnings}
<h2>Folders</h2>{_table(("Folder", "Type", "State", "Files", "Size", "Needed"), [_folder(folder) for folder in status.folders])}
<h2>Devices</h2>{_table(("Device", "State", "Address", "In", "Out"), [_device(device) for device in status.devices])}{_siblings(status.siblings)}
</body></html>
"""


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return "<p>None yet.</p>"
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _siblings(siblings: tuple[SiblingStatus, ...]) -> str:
    if not siblings:
        return ""
    rows: list[tuple[str, ...]] = [
        (
            sibling.name or sibling.id[:7],
            "connected" if sibling.connected else "stopped" if sibling.stopped else sibling.last_error or "not connected",
            f"{span_text(sibling.heartbeat_age_s)} ago",
            str(sibling.head),
            sibling.version,
        )
        for sibling in siblings
    ]
    return f"<h2>Other nodes of this store</h2>{_table(('Node', 'State', 'Heartbeat', 'Commit', 'Version'), rows)}"


def _folder(folder: FolderStatus) -> tuple[str, ...]:
    state = f"{folder.state}: {folder.reason}" if folder.reason else folder.state
    needed = f"{folder.need_files:,} files, {size_text(folder.need_bytes)}" if folder.need_files or folder.need_bytes else "–"
    return (folder.label or folder.id, folder.type, state, f"{folder.files:,}", size_text(folder.bytes), needed)


def _device(device: DeviceStatus) -> tuple[str, ...]:
    state = f"connected, {device.client}" if device.connected else device.last_error or "not connected"
    rates = (f"{size_text(device.in_bytes_per_s)}/s", f"{size_text(device.out_bytes_per_s)}/s") if device.connected else ("–", "–")
    name = (device.name or device.id[:7]) + (" (untrusted)" if device.untrusted else "")
    return (name, state, device.address or "–", *rates)
