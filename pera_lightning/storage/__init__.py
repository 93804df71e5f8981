"""Files: read with bounds, written as a whole, never over what is somebody else's. Nothing here knows of adapters.

May import errors, requirements and visible_text alone. Open `whole_folder.py` for writing, `bounded_json.py` and
`schema.py` for reading.
"""
